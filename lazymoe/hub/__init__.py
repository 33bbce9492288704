"""The Hugging Face Hub, through its own client: reading (`reading`), whose token it is (`accounts`), writing
(`uploading`). All requests go through `client.ask`, which tries again and explains what went wrong."""
