"""The stages, one module each: they glue rooms together and leave the deciding to them."""
