//! A workload and a plane that says what a test makes it say.
