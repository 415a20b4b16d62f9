//! What AWS says about a workload, and how a workload proves to AWS, and through AWS to others, who it is.
