//! Exit codes: BSD's `sysexits.h`, which init systems and shells know.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | it did what it was asked to do |
//! | 1 | the answer is no: not healthy, a check failed |
//! | 64 | the command line is wrong |
//! | 69 | something it needs is not available: an address in use, a service that does not answer |
//! | 70 | a fault of skiff itself |
//! | 78 | the configuration is wrong or missing |

use std::process::ExitCode;

/// Why a command ends without success. Shown as one line, `skiff: <message>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// The answer is no.
    #[error("{0}")]
    No(String),
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// Something it needs is not available.
    #[error("{0}")]
    Unavailable(String),
    /// A fault of skiff itself.
    #[error("{0}")]
    Internal(String),
    /// The configuration is wrong or missing.
    #[error("{0}")]
    Configuration(String),
}

impl Failure {
    /// The number that the process exits with.
    pub fn code(&self) -> u8 {
        match self {
            Self::No(_) => 1,
            Self::Usage(_) => 64,
            Self::Unavailable(_) => 69,
            Self::Internal(_) => 70,
            Self::Configuration(_) => 78,
        }
    }
}

impl From<&Failure> for ExitCode {
    fn from(failure: &Failure) -> Self {
        failure.code().into()
    }
}
