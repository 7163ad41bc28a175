"""What puts load on a real server, and judges what comes back."""
