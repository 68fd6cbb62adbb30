"""What stands on Git and DVC: questions to both, and clones of a commit."""
