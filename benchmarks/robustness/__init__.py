"""Long checks that a server survives invalid requests, many clients and clients that hang up."""
