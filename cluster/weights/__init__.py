"""One weight update from the learner to every engine, with receipts."""
