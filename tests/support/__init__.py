"""What the tests of whole processes share: real servers, stock clients, looks at the system."""
