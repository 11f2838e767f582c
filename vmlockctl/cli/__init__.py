"""click and rich: parse, one call into ``ops``, render. The only code that prints or exits."""
