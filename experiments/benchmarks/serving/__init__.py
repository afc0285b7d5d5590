"""Times predictions of an artifact, in process and over HTTP, against FBGEMM's."""
