"""What engines that share a run between cards keep of it, and how it is brought together and back."""
