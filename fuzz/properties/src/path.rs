//! Paths: normalised once is normalised for good, and routes and policies look at the same one.

use skiff_proxy::config::{
    EscapedSlashesAction, PathMatch, Permission, Policy, Principal, RbacAction, RbacRules, Route, RouteAction,
    RouteConfiguration, RouteMatch, RouteTarget, StringMatcher, VirtualHost,
};
use skiff_proxy::http::head::RequestHead;
use skiff_proxy::http::path::{PathOptions, PathOutcome, normalize};
use skiff_proxy::http::route::RouteTable;
use skiff_proxy::rbac::{Engine, RequestContext};

use crate::facts;
use crate::input::Input;

const ACTIONS: [EscapedSlashesAction; 4] = [
    EscapedSlashesAction::KeepUnchanged,
    EscapedSlashesAction::RejectRequest,
    EscapedSlashesAction::UnescapeAndRedirect,
    EscapedSlashesAction::UnescapeAndForward,
];

/// A path under one of the sixteen settings.
pub fn path(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let options = PathOptions {
        normalize: choice & 1 != 0,
        merge_slashes: choice & 2 != 0,
        escaped_slashes: ACTIONS[usize::from(choice >> 2 & 3)],
    };
    let received = input.rest();
    let path = match normalize(received, options) {
        PathOutcome::Unchanged => received.to_vec(),
        PathOutcome::Rewritten(path) => {
            assert_ne!(path, received);
            path
        }
        PathOutcome::Redirect(path) => {
            // Who follows the redirect is not sent round in circles.
            assert!(!matches!(normalize(&path, options), PathOutcome::Redirect(_)), "{path:?}");
            path
        }
        PathOutcome::Reject { status, .. } => {
            assert!(matches!(status, 400 | 404));
            return;
        }
    };
    assert_eq!(normalize(&path, options), PathOutcome::Unchanged, "{:?}", String::from_utf8_lossy(&path));
    if path.is_empty() {
        return;
    }
    assert_eq!(path[0], b'/');
    let end = path.iter().position(|b| *b == b'?').unwrap_or(path.len());
    check_canonical(&path[..end], options);
    same_for_routes_and_policies(&path);
}

fn check_canonical(path: &[u8], options: PathOptions) {
    assert!(!path.contains(&b'#'), "a fragment");
    let text = String::from_utf8_lossy(path).to_ascii_lowercase();
    if options.normalize {
        assert!(path.iter().all(|b| (0x21..0x7f).contains(b) && *b != b'\\'), "{text:?}");
        let segments = || text.split('/');
        assert!(!segments().any(|segment| matches!(segment, "." | "..")), "a dot segment in {text:?}");
        assert!(!text.contains("%2e") && !text.contains("%00"), "{text:?}");
    }
    if options.merge_slashes {
        // As in Envoy, a path of nothing but slashes keeps two.
        assert!(!text.contains("//") || text == "//", "{text:?}");
    }
    if options.escaped_slashes != EscapedSlashesAction::KeepUnchanged {
        assert!(!text.contains("%2f") && !text.contains("%5c"), "{text:?}");
    }
}

/// A policy and a route for exactly this path both find it, and for another one neither does.
fn same_for_routes_and_policies(path: &[u8]) {
    let mut head = RequestHead::new();
    head.set_authority(b"h");
    head.set_path(path);
    let Ok(plain) = std::str::from_utf8(head.path_without_query()) else { return };
    let connection = facts::connection(None);
    let context =
        RequestContext { request: Some(&head), connection: &connection, remote: connection.remote.ip(), metadata: None };
    for (wanted, found) in [(plain.to_owned(), true), (format!("{plain}x"), false), (format!("/y{plain}"), false)] {
        let allowed = |action| engine(action, &wanted).evaluate(&context).allowed;
        assert_eq!(allowed(RbacAction::Allow), found, "ALLOW {wanted:?}");
        assert_eq!(allowed(RbacAction::Deny), !found, "DENY {wanted:?}");
        assert_eq!(table(PathMatch::Exact(wanted.clone())).find(&head).is_some(), found, "route {wanted:?}");
    }
    assert!(table(PathMatch::Prefix(plain.to_owned())).find(&head).is_some());
}

fn engine(action: RbacAction, path: &str) -> Engine {
    let permissions = vec![Permission::UrlPath(StringMatcher::exact(path))];
    let policy = Policy { permissions, principals: vec![Principal::Any] };
    Engine::compile(&RbacRules { action, policies: [("p".to_owned(), policy)].into() }).unwrap()
}

fn table(path: PathMatch) -> RouteTable {
    let target = RouteTarget::Forward(Box::new(RouteAction::cluster("c")));
    let host = VirtualHost {
        name: "v".to_owned(),
        domains: vec!["*".to_owned()],
        routes: vec![Route::new("r", RouteMatch::path(path), target)],
        ..VirtualHost::default()
    };
    let config = RouteConfiguration { name: "t".to_owned(), virtual_hosts: vec![host.into()], ..RouteConfiguration::default() };
    RouteTable::compile(&config.into(), &|_| None).unwrap()
}
