//! Access logs: whatever is asked, a line stays one line and JSON stays JSON.

use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use skiff_proxy::config::LogFormat;
use skiff_proxy::http::h1::head::{HeadLimits, RequestKind, parse_request, parse_response};
use skiff_proxy::http::head::{RequestHead, ResponseHead, Version};
use skiff_proxy::stream_info::{FormatContext, StreamInfo};
use skiff_proxy::telemetry::format::LogTemplate;

use crate::facts;
use crate::input::Input;

/// Any format and any request and response.
pub fn access_log(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let format = input.text();
    let (mut request, mut response) = (RequestHead::new(), ResponseHead::default());
    let names = (input.text(), input.text());
    let has_request = matches!(parse_request(input.part(), &HeadLimits::default(), &mut request), Ok(Some(_)));
    if !has_request {
        request.clear();
    }
    let kind = RequestKind { upgrade: true, ..RequestKind::default() };
    let has_response = matches!(parse_response(input.part(), &HeadLimits::default(), kind, &mut response), Ok(Some(_)));
    if !has_response {
        response.clear();
    }
    let peer = facts::certificate(&[&names.0], &[&names.1], &names.0);
    let mut connection = facts::connection((choice & 1 != 0).then(|| Arc::new(peer)));
    connection.server_name = (choice & 2 != 0).then(|| names.1.clone().into());
    let mut info = StreamInfo::new(Rc::new(connection));
    info.protocol = (choice & 4 != 0).then_some(Version::Http11);
    info.details = Cow::Owned(names.0.clone());
    info.termination_details = (choice & 8 != 0).then(|| Cow::Owned(names.1.clone()));
    info.upstream_transport_failure = (choice & 16 != 0).then(|| Rc::from(names.0.as_str()));
    info.response_code = u16::from(choice) * 4;
    let now = info.start + Duration::from_millis(7);
    let context = FormatContext {
        info: &info,
        request: (has_request && choice & 32 == 0).then_some(&request),
        response: (has_response && choice & 64 == 0).then_some(&response),
        trailers: Some(&response.headers),
        now,
    };

    if let Ok(template) = LogTemplate::compile(&LogFormat::Text(format.clone())) {
        let mut line = Vec::new();
        template.render(&context, &mut line);
        // A percent sign may be doubled in the format, nothing else of it can vanish that ends a line.
        let written = format.bytes().filter(|b| ends_line(*b)).count();
        let found = line.iter().filter(|b| ends_line(**b)).count();
        assert!(found <= written, "{:?} from {format:?}", String::from_utf8_lossy(&line));
    }
    let fields = vec![
        (names.0.clone(), format.clone()),
        ("typed".to_owned(), format.clone()),
        ("mixed".to_owned(), format!("a {format} b")),
    ];
    let layout = LogFormat::Json { fields, omit_empty_values: choice & 128 != 0, sort: choice & 1 != 0 };
    if let Ok(template) = LogTemplate::compile(&layout) {
        let mut line = Vec::new();
        template.render(&context, &mut line);
        assert_eq!(line.pop(), Some(b'\n'));
        assert!(!line.iter().any(|b| *b < b' '), "a control character in {:?}", String::from_utf8_lossy(&line));
        let json: serde_json::Value =
            serde_json::from_slice(&line).unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&line)));
        let object = json.as_object().expect("an object");
        assert!(choice & 128 != 0 || object.contains_key("typed"));
    }
}

fn ends_line(byte: u8) -> bool {
    matches!(byte, b'\n' | b'\r' | 0)
}
