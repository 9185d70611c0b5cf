"""What is measured here: a verification, the card that it runs on, and predictions for runs that were measured."""
