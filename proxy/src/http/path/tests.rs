use super::*;

const fn options(normalize: bool, merge_slashes: bool, escaped_slashes: EscapedSlashesAction) -> PathOptions {
    PathOptions { normalize, merge_slashes, escaped_slashes }
}

// The mesh's four settings and the two that Envoy has beside them, named as the recorded scenarios are.
const NONE: PathOptions = options(false, false, EscapedSlashesAction::KeepUnchanged);
const BASE: PathOptions = options(true, false, EscapedSlashesAction::KeepUnchanged);
const MERGE: PathOptions = options(true, true, EscapedSlashesAction::KeepUnchanged);
const DECODE: PathOptions = options(true, true, EscapedSlashesAction::UnescapeAndForward);
const REDIRECT: PathOptions = options(true, false, EscapedSlashesAction::UnescapeAndRedirect);
const REJECT: PathOptions = options(true, false, EscapedSlashesAction::RejectRequest);

const ALL: [PathOptions; 6] = [NONE, BASE, MERGE, DECODE, REDIRECT, REJECT];

fn forwarded(path: &str, options: PathOptions) -> String {
    match normalize(path.as_bytes(), options) {
        PathOutcome::Unchanged => path.to_owned(),
        PathOutcome::Rewritten(path) => String::from_utf8(path).unwrap(),
        PathOutcome::Redirect(path) => format!("307 {}", String::from_utf8(path).unwrap()),
        PathOutcome::Reject { status, details, path } => {
            let path = path.map(|path| String::from_utf8(path).unwrap()).unwrap_or_default();
            format!("{status} {details} {path}").trim_end().to_owned()
        }
    }
}

#[test]
fn paths_become_what_envoy_made_of_them() {
    let failed = "400 path_normalization_failed";
    let table: &[(&str, &[(PathOptions, &str)])] = &[
        ("/a\\b", &[(DECODE, "/a/b"), (BASE, "/a/b"), (NONE, "/a\\b")]),
        ("/a:b@c,d", &[(BASE, "/a:b@c,d"), (DECODE, "/a:b@c,d")]),
        ("/a/./b", &[(BASE, "/a/b"), (DECODE, "/a/b")]),
        ("/a/../b", &[(DECODE, "/b"), (MERGE, "/b"), (NONE, "/a/../b")]),
        ("/a/b/..", &[(BASE, "/a/"), (DECODE, "/a/")]),
        ("//a//b", &[(NONE, "//a//b"), (BASE, "//a//b"), (REJECT, "//a//b"), (MERGE, "/a/b")]),
        ("/...", &[(BASE, "/..."), (DECODE, "/...")]),
        ("/a%00b", &[(BASE, failed), (DECODE, failed), (MERGE, failed), (NONE, "/a%00b")]),
        ("/a%252fb", &[(BASE, "/a%252fb"), (DECODE, "/a%252fb")]),
        ("/a/%2e%2e/b", &[(DECODE, "/b"), (MERGE, "/b"), (BASE, "/b"), (NONE, "/a/%2e%2e/b")]),
        ("/a/.%2E/b", &[(BASE, "/b"), (DECODE, "/b")]),
        ("/a%2fb", &[(BASE, "/a%2fb"), (MERGE, "/a%2fb"), (NONE, "/a%2fb"), (DECODE, "/a/b")]),
        ("/a%2f..%2fb", &[(BASE, "/a%2f..%2fb"), (DECODE, "/b")]),
        ("/a%2fb?q=1", &[(REDIRECT, "307 /a/b?q=1")]),
        ("/a%5Cb?q=1", &[(REDIRECT, "307 /a/b?q=1")]),
        ("/a%5Cb", &[(BASE, "/a%5Cb"), (DECODE, "/a/b"), (NONE, "/a%5Cb"), (REJECT, "400 path_normalization_failed /a\\b")]),
        ("/a%zzb", &[(DECODE, "/a%zzb"), (NONE, "/a%zzb")]),
        ("/%7euser/%41", &[(MERGE, "/~user/A"), (BASE, "/~user/A"), (NONE, "/%7euser/%41")]),
        ("/a;p=1/../b", &[(BASE, "/b"), (DECODE, "/b")]),
        ("/./", &[(DECODE, "/"), (BASE, "/")]),
        ("/a%20b", &[(DECODE, "/a%20b"), (BASE, "/a%20b")]),
        ("/%e2%82%ac", &[(BASE, "/%e2%82%ac"), (DECODE, "/%e2%82%ac")]),
        ("/a/b/", &[(BASE, "/a/b/")]),
        ("/a///b", &[(BASE, "/a///b"), (DECODE, "/a/b"), (MERGE, "/a/b")]),
        // security-cases.md rows 18 and 19: what DENY /admin has to see.
        ("/./admin", &[(BASE, "/admin")]),
        ("/x/../admin", &[(BASE, "/admin")]),
        ("/%61dmin", &[(BASE, "/admin")]),
        ("/x/%2e%2e/admin", &[(BASE, "/admin")]),
        ("/%2561dmin", &[(BASE, "/%2561dmin")]),
        ("/admin%2f", &[(DECODE, "/admin/")]),
        ("/%5cadmin", &[(DECODE, "/admin")]),
    ];
    for (path, results) in table {
        for (options, expected) in *results {
            assert_eq!(forwarded(path, *options), *expected, "{path} under {options:?}");
        }
    }
}

#[test]
fn queries_stay_and_fragments_go() {
    for options in ALL {
        assert_eq!(forwarded("/a?b=/../c%2f//\\", options), "/a?b=/../c%2f//\\");
        assert_eq!(forwarded("/a#b/../c", options), "/a");
        assert_eq!(forwarded("/a?q#f", options), "/a?q");
    }
    assert_eq!(forwarded("/..?q", BASE), "/?q");
}

#[test]
fn a_target_that_is_no_path_is_not_found() {
    assert_eq!(forwarded("*", BASE), "404 absolute_path_rejected");
    assert_eq!(forwarded("", BASE), "");
}

#[test]
fn dot_segments_never_climb_above_the_root() {
    assert_eq!(forwarded("/../../etc/passwd", BASE), "/etc/passwd");
    assert_eq!(forwarded("//..//../x", BASE), "/x");
    assert_eq!(forwarded("/a\\..\\b", BASE), "/b");
}

#[test]
fn parameters_do_not_hide_dot_segments() {
    // As Envoy 1.40, and where the dots are escaped further than it: servers that know parameters take all of these for dots.
    assert_eq!(forwarded("/a/..;/b", BASE), "/b");
    assert_eq!(forwarded("/a/..;x=y/b?q", BASE), "/b?q");
    assert_eq!(forwarded("/a/.;/b", BASE), "/a/b");
    assert_eq!(forwarded("/a/..;", BASE), "/");
    assert_eq!(forwarded("/a/%2e%2e;/b", BASE), "/b");
    assert_eq!(forwarded("/a;x/..y;/b;z", BASE), "/a;x/..y;/b;z");
}

#[test]
fn merging_leaves_what_envoy_leaves() {
    assert_eq!(forwarded("/a//b///", MERGE), "/a/b/");
    assert_eq!(forwarded("//", MERGE), "//");
    assert_eq!(forwarded("////?a//b", MERGE), "//?a//b");
}

#[test]
fn decoding_never_completes_a_stray_percent_sign() {
    // A second decoder (the application) would otherwise see `/..`. Envoy escapes the sign itself then.
    assert_eq!(forwarded("/%%32%65", BASE), "/%252e");
    assert_eq!(forwarded("/%2%65", BASE), "/%252e");
    assert_eq!(forwarded("/%%32e", BASE), "/%252e");
    assert_eq!(forwarded("/%%41", BASE), "/%A");
    assert_eq!(forwarded("/%%41z", BASE), "/%Az");
    assert_eq!(forwarded("/%/%41", BASE), "/%/A");
}

#[test]
fn raw_bytes_that_need_it_are_escaped() {
    let PathOutcome::Rewritten(path) = normalize(b"/\"<\x80|^", BASE) else { panic!("rewritten") };
    assert_eq!(path, b"/%22%3C%80%7C%5E");
}

#[test]
fn random_paths_never_panic_and_normalise_once() {
    let alphabet = b"/./.;%2eE25fFcC5\\aA0?#\x00\x80~ ";
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..60_000 {
        let mut path = vec![b'/'];
        path.extend((0..random.usize(0..24)).map(|_| match random.bool() {
            true => alphabet[random.usize(0..alphabet.len())],
            false => random.choice(*b"/.;%2").unwrap(),
        }));
        for options in ALL {
            match normalize(&path, options) {
                PathOutcome::Rewritten(once) | PathOutcome::Redirect(once) => {
                    assert_eq!(normalize(&once, options), PathOutcome::Unchanged, "{}", path.escape_ascii());
                }
                PathOutcome::Unchanged | PathOutcome::Reject { .. } => {}
            }
        }
    }
}
