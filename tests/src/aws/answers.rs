//! What AWS answers.

use bytes::Bytes;
use http::{Method, Request, Response};
use serde_json::{Value, json};

use super::signature::{form, query, verify};
use super::{ACCOUNT, ENDPOINT_TOKEN, FakeTask, REGION, Session, State};

const CONTAINER_ID: &str = "0123456789abcdef-our-own";

pub(super) fn to(request: &Request<Bytes>, state: &mut State) -> Response<Bytes> {
    let action = action(request);
    state.calls.push(action.clone());
    if let Some((status, headers, body)) = state.instead.get(&action) {
        let mut answer = Response::builder().status(*status);
        for (name, value) in headers {
            answer = answer.header(name, value);
        }
        return answer.body(Bytes::from(body.clone())).unwrap();
    }
    let path = request.uri().path();
    match action.as_str() {
        "metadata" => metadata(path, state),
        "credentials" => credentials(request, state),
        "instance" => instance(request),
        "GetCallerIdentity" => get_caller_identity(request, state),
        "AssumeRole" => assume_role(request, state),
        "GetWebIdentityToken" => get_web_identity_token(request, state),
        "AssumeRoleWithWebIdentity" => assume_role_with_web_identity(request, state),
        "DescribeTasks" => describe_tasks(request, state),
        "DescribeTaskDefinition" => describe_task_definition(request, state),
        _ => error(400, "InvalidAction"),
    }
}

fn action(request: &Request<Bytes>) -> String {
    let path = request.uri().path();
    if path.starts_with("/v4/") {
        return "metadata".to_owned();
    }
    if path.starts_with("/credentials/") {
        return "credentials".to_owned();
    }
    if path.starts_with("/latest/") {
        return "instance".to_owned();
    }
    if let Some(target) = request.headers().get("x-amz-target") {
        return target.to_str().unwrap().rsplit('.').next().unwrap().to_owned();
    }
    let parameters = match *request.method() {
        Method::POST => form(std::str::from_utf8(request.body()).unwrap()),
        _ => query(request),
    };
    parameters.into_iter().find(|(name, _)| name == "Action").map(|(_, value)| value).unwrap_or_default()
}

fn answer(body: &Value) -> Response<Bytes> {
    Response::new(Bytes::from(body.to_string()))
}

fn error(status: u16, code: &str) -> Response<Bytes> {
    // STS repeats what was signed, the token with it.
    let body = json!({ "Error": { "Code": code, "Message": "The canonical request was\nGET\n/\nsecret", "Type": "Sender" } });
    Response::builder().status(status).body(Bytes::from(body.to_string())).unwrap()
}

fn ecs_error(status: u16, code: &str) -> Response<Bytes> {
    let body = json!({ "__type": format!("com.amazonaws.ecs#{code}"), "message": "no" });
    Response::builder().status(status).body(Bytes::from(body.to_string())).unwrap()
}

fn get_caller_identity(request: &Request<Bytes>, state: &State) -> Response<Bytes> {
    let host = request.headers().get("host").map(|host| host.to_str().unwrap().to_owned());
    if !host.is_some_and(|host| host.starts_with("sts.")) {
        return error(403, "SignatureDoesNotMatch");
    }
    match verify(request, "sts", state) {
        Err(code) => error(403, code),
        Ok(session) => {
            let name = session.arn.rsplit('/').next().unwrap();
            let result = json!({ "Account": ACCOUNT, "Arn": session.arn, "UserId": format!("AROAEXAMPLE:{name}") });
            answer(
                &json!({ "GetCallerIdentityResponse": { "GetCallerIdentityResult": result, "ResponseMetadata": { "RequestId": "1" } } }),
            )
        }
    }
}

fn assume_role(request: &Request<Bytes>, state: &mut State) -> Response<Bytes> {
    match verify(request, "sts", state).map(drop) {
        Err(code) => error(403, code),
        Ok(()) => assumed(request, state, "AssumeRole"),
    }
}

/// No token that anybody would believe: it repeats who asks and for whom.
fn get_web_identity_token(request: &Request<Bytes>, state: &State) -> Response<Bytes> {
    let session = match verify(request, "sts", state) {
        Err(code) => return error(403, code),
        Ok(session) => session,
    };
    let parameters = form(std::str::from_utf8(request.body()).unwrap());
    let find = |name: &str| parameters.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str());
    let seconds = find("DurationSeconds").is_none_or(|seconds| (60..=3600).contains(&seconds.parse().unwrap_or(0)));
    let (Some(audience), Some("RS256" | "ES384"), true) = (find("Audience.member.1"), find("SigningAlgorithm"), seconds) else {
        return error(400, "ValidationError");
    };
    let token = format!("{}-for-{audience}", session.arn);
    let result = json!({ "WebIdentityToken": token, "Expiration": 4_102_444_800.0 });
    answer(
        &json!({ "GetWebIdentityTokenResponse": { "GetWebIdentityTokenResult": result, "ResponseMetadata": { "RequestId": "1" } } }),
    )
}

fn assume_role_with_web_identity(request: &Request<Bytes>, state: &mut State) -> Response<Bytes> {
    assumed(request, state, "AssumeRoleWithWebIdentity")
}

fn assumed(request: &Request<Bytes>, state: &mut State, action: &str) -> Response<Bytes> {
    let parameters = form(std::str::from_utf8(request.body()).unwrap());
    let find = |name: &str| parameters.iter().find(|(other, _)| other == name).unwrap().1.clone();
    let session = Session::of(find("RoleArn").rsplit('/').next().unwrap(), &find("RoleSessionName"));
    let result = json!({ "Credentials": {
        "AccessKeyId": session.access_key_id, "SecretAccessKey": session.secret, "SessionToken": session.token,
        "Expiration": 4_102_444_800.0,
    } });
    state.sessions.insert(session.access_key_id.clone(), session);
    answer(&json!({ format!("{action}Response"): { format!("{action}Result"): result } }))
}

fn describe_tasks(request: &Request<Bytes>, state: &State) -> Response<Bytes> {
    if let Err(code) = verify(request, "ecs", state) {
        return ecs_error(400, code);
    }
    let question: Value = serde_json::from_slice(request.body()).unwrap();
    let (cluster, id) = (question["cluster"].as_str().unwrap(), question["tasks"][0].as_str().unwrap());
    if !state.tasks.iter().any(|task| task.cluster == cluster) {
        return ecs_error(400, "ClusterNotFoundException");
    }
    match state.tasks.iter().find(|task| task.cluster == cluster && task.id == id) {
        None => answer(&json!({ "tasks": [], "failures": [{ "arn": id, "reason": "MISSING" }] })),
        Some(task) => answer(&json!({ "tasks": [described(task)], "failures": [] })),
    }
}

fn described(task: &FakeTask) -> Value {
    let details: Vec<_> =
        task.address.iter().map(|ip| json!({ "name": "privateIPv4Address", "value": ip.to_string() })).collect();
    let mut described = json!({
        "taskArn": task.arn(),
        "clusterArn": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{}", task.cluster),
        "taskDefinitionArn": task.definition_arn(),
        "lastStatus": task.last_status,
        "desiredStatus": task.desired_status,
        "launchType": task.launch_type,
        "overrides": { "containerOverrides": [] },
        "attachments": [{ "type": "ElasticNetworkInterface", "status": "ATTACHED", "details": details }],
    });
    if let Some(zone) = &task.zone {
        described["availabilityZone"] = json!(zone);
    }
    if let Some(role) = &task.overridden_role_arn {
        described["overrides"]["taskRoleArn"] = json!(role);
    }
    described
}

fn describe_task_definition(request: &Request<Bytes>, state: &State) -> Response<Bytes> {
    if let Err(code) = verify(request, "ecs", state) {
        return ecs_error(400, code);
    }
    let question: Value = serde_json::from_slice(request.body()).unwrap();
    match state.tasks.iter().find(|task| question["taskDefinition"] == task.definition_arn().as_str()) {
        None => ecs_error(400, "ClientException"),
        Some(task) => {
            let mut definition = json!({ "taskDefinitionArn": task.definition_arn(), "networkMode": "awsvpc" });
            if let Some(role) = &task.role_arn {
                definition["taskRoleArn"] = json!(role);
            }
            answer(&json!({ "taskDefinition": definition, "tags": [] }))
        }
    }
}

fn metadata(path: &str, state: &State) -> Response<Bytes> {
    let mut parts = path.split('/').skip(2);
    let id = parts.next().unwrap_or_default();
    let Some(task) = state.tasks.iter().find(|task| task.id == id) else { return error(404, "NotFound") };
    let own = container(CONTAINER_ID, "onboarding-agent", "NORMAL", "RUNNING", task);
    match parts.next() {
        None => answer(&own),
        Some("task") => {
            let pause = container("pause", "~internal~ecs~pause", "CNI_PAUSE", "RESOURCES_PROVISIONED", task);
            let applications = task.applications.iter().map(|(name, status)| container(name, name, "NORMAL", status, task));
            let containers: Vec<_> = [pause, own].into_iter().chain(applications).collect();
            let mut answered = json!({
                "Cluster": format!("arn:aws:ecs:{REGION}:{ACCOUNT}:cluster/{}", task.cluster),
                "TaskARN": task.arn(), "Family": "bookinfo_ratings", "Revision": "1",
                "DesiredStatus": task.desired_status, "KnownStatus": task.last_status, "LaunchType": task.launch_type,
                "Limits": { "CPU": 0.25, "Memory": 512 },
                "Containers": containers,
            });
            if let Some(zone) = &task.zone {
                answered["AvailabilityZone"] = json!(zone);
            }
            answer(&answered)
        }
        Some(_) => error(404, "NotFound"),
    }
}

fn container(id: &str, name: &str, kind: &str, status: &str, task: &FakeTask) -> Value {
    let (mode, addresses) = match task.address {
        Some(address) => ("awsvpc", vec![address.to_string()]),
        None => ("host", vec![String::new()]),
    };
    let desired = if status == "STOPPED" { "STOPPED" } else { "RUNNING" };
    json!({
        "DockerId": id, "Name": name, "Type": kind, "DesiredStatus": desired, "KnownStatus": status,
        "Networks": [{ "NetworkMode": mode, "IPv4Addresses": addresses }],
    })
}

fn credentials(request: &Request<Bytes>, state: &State) -> Response<Bytes> {
    if request.headers().get("authorization").is_none_or(|token| token != ENDPOINT_TOKEN) {
        return error(401, "Unauthorized");
    }
    let id = request.uri().path().trim_start_matches("/credentials/");
    let Some(task) = state.tasks.iter().find(|task| task.id == id) else { return error(404, "NotFound") };
    answer(&written(&Session::of(&task.role_name(), id)))
}

fn written(session: &Session) -> Value {
    json!({
        "RoleArn": "arn", "AccessKeyId": session.access_key_id, "SecretAccessKey": session.secret, "Token": session.token,
        "Expiration": "2099-01-01T00:00:00Z",
    })
}

/// An instance `i-0123456789abcdef0` in `us-east-1b` with the role `vm`; STS knows it once the test has added
/// `Session::of("vm", …)`. Its document is signed with the key of `certificates/us-east-1.pem`.
fn instance(request: &Request<Bytes>) -> Response<Bytes> {
    const ID: &str = "i-0123456789abcdef0";
    const DOCUMENT: &[u8] = include_bytes!("../../../agent/testdata/aws/instance/document");
    const SIGNATURE: &[u8] = include_bytes!("../../../agent/testdata/aws/instance/rsa2048");
    const SESSION: &str = "session-of-imds";
    let path = request.uri().path();
    if path == "/latest/api/token" {
        let put = *request.method() == Method::PUT && request.headers().contains_key("x-aws-ec2-metadata-token-ttl-seconds");
        return if put { Response::new(Bytes::from(SESSION)) } else { error(405, "MethodNotAllowed") };
    }
    if request.headers().get("x-aws-ec2-metadata-token").is_none_or(|token| token != SESSION) {
        return error(401, "Unauthorized");
    }
    match path {
        "/latest/meta-data/iam/security-credentials/" => Response::new(Bytes::from("vm")),
        "/latest/meta-data/iam/security-credentials/vm" => answer(&written(&Session::of("vm", ID))),
        "/latest/dynamic/instance-identity/rsa2048" => Response::new(Bytes::from_static(SIGNATURE)),
        "/latest/dynamic/instance-identity/document" => Response::new(Bytes::from_static(DOCUMENT)),
        _ => error(404, "NotFound"),
    }
}
