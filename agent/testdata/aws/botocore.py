"""Vectors of botocore's signer: run with botocore installed, prints JSON."""
import datetime, json, botocore.auth, botocore
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials
import unittest.mock as mock
NOW = datetime.datetime(2026, 11, 29, 16, 0, 0)
class Fixed(datetime.datetime):
    @classmethod
    def utcnow(cls): return NOW
    @classmethod
    def now(cls, tz=None): return NOW.replace(tzinfo=tz)
out = {"time": "2026-11-29T16:00:00Z", "seconds": 1795968000, "botocore": botocore.__version__, "presigned": [], "signed": []}
assert int(NOW.replace(tzinfo=datetime.timezone.utc).timestamp()) == out["seconds"], NOW.replace(tzinfo=datetime.timezone.utc).timestamp()
CREDS = [
  {"access_key_id": "AKIDEXAMPLE", "secret_access_key": "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY", "session_token": "IQoJb3JpZ2luX2VjE//+abc=/x y~é"},
  {"access_key_id": "ASIAEXAMPLE", "secret_access_key": "secret", "session_token": None},
]
import botocore.compat
patches = [mock.patch.object(botocore.auth, "get_current_datetime", lambda *a, **k: NOW)] if hasattr(botocore.auth, "get_current_datetime") else [mock.patch.object(botocore.auth.datetime, "datetime", Fixed)]
with patches[0]:
    for c in CREDS:
        creds = Credentials(c["access_key_id"], c["secret_access_key"], c["session_token"])
        for region, host in [("us-east-1", "sts.us-east-1.amazonaws.com"), ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"), ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com")]:
            headers = {"x-onboarding-plane": "3b241101-e2bb-4255-8caf-4136c566a962", "x-onboarding-nonce": "bm9uY2U"}
            req = AWSRequest("GET", f"https://{host}/?Action=GetCallerIdentity&Version=2011-06-15", headers=headers)
            botocore.auth.SigV4QueryAuth(creds, "sts", region, expires=60).add_auth(req)
            out["presigned"].append({"credentials": c, "region": region, "host": host, "headers": headers, "url": req.url})
        for service, region, host, target, body in [
            ("ecs", "us-east-1", "ecs.us-east-1.amazonaws.com", "AmazonEC2ContainerServiceV20141113.DescribeTasks", '{"cluster":"bookinfo","tasks":["3a151358f03a4e32bf8cd401c1c74653"]}'),
            ("ecs", "eu-west-1", "ecs.eu-west-1.amazonaws.com", "AmazonEC2ContainerServiceV20141113.DescribeTaskDefinition", '{"taskDefinition":"a b  c"}'),
        ]:
            if c["session_token"]: creds = Credentials(c["access_key_id"], c["secret_access_key"], "IQoJb3JpZ2luX2VjE//+abc=")
            req = AWSRequest("POST", f"https://{host}/", data=body.encode(), headers={"host": host, "content-type": "application/x-amz-json-1.1", "x-amz-target": target})
            botocore.auth.SigV4Auth(creds, service, region).add_auth(req)
            h = {k.lower(): v for k, v in req.headers.items()}
            out["signed"].append({"credentials": {**c, "session_token": creds.token}, "service": service, "region": region, "host": host, "target": target, "body": body, "authorization": h["authorization"]})
print(json.dumps(out, indent=1, ensure_ascii=False))
