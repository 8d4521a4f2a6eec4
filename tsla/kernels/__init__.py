"""The fast implementations that `tsla.ops` dispatches to; nothing else imports them."""
