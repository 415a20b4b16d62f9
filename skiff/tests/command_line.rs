//! The `skiff` binary from outside: exit codes, and one line on stderr.

use std::process::{Command, Output};

fn skiff(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_skiff"));
    command.env_clear().args(arguments).output().expect("the binary runs")
}

fn refused(arguments: &[&str], code: i32, says: &str) {
    let output = skiff(arguments);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(code), "{stderr}");
    assert!(stderr.starts_with("skiff: ") && stderr.contains(says), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
    assert!(output.stdout.is_empty());
}

#[test]
fn every_failure_has_its_code_and_one_line() {
    refused(&["--config", "/nowhere"], 78, "skiff quickstart");
    refused(&["--no-such-option"], 64, "--no-such-option");
    refused(&["fly"], 64, "fly");
    // Port 1 of an address that nobody uses.
    refused(&["health", "--admin-address", "127.99.99.99:1"], 1, "127.99.99.99:1");
}

#[test]
fn help_and_version_go_to_stdout() {
    for (arguments, says) in [(&["version"][..], env!("CARGO_PKG_VERSION")), (&["--help"], "SKIFF_CONFIG"), (&["-V"], "skiff ")] {
        let output = skiff(arguments);
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(says), "{arguments:?}");
    }
}
