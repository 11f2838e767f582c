"""One module per operation: values in, values out; nothing here prints."""
