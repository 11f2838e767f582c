"""What the messages of sanlock, libvirt, QEMU and vmlockctl mean: a file for each program that says them."""
