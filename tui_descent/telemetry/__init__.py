"""The past: bounded histories and the forms they are written in. Protocol and scenario only."""
