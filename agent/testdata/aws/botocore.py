"""Makes botocore.json: requests signed by botocore, AWS's own signer for Python, at a fixed time.

    pip install botocore && python botocore.py > botocore.json
"""

import datetime
import json
import sys
from unittest import mock

sys.path.pop(0)  # This file is called like the module.

import botocore.auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

NOW = datetime.datetime(2026, 11, 29, 16, 0, 0)
SECONDS = 1795968000
# Everything that has to be encoded in a query; a header takes less.
ODD_TOKEN = "IQoJb3JpZ2luX2VjE//+abc=/x y~é"
TOKEN = "IQoJb3JpZ2luX2VjE//+abc="
ROLE = ("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
USER = ("ASIAEXAMPLE", "secret")
PRESIGNED = [
    ("us-east-1", "sts.us-east-1.amazonaws.com"),
    ("cn-north-1", "sts.cn-north-1.amazonaws.com.cn"),
    ("us-gov-west-1", "sts.us-gov-west-1.amazonaws.com"),
]
BINDING = {"x-onboarding-plane": "3b241101-e2bb-4255-8caf-4136c566a962", "x-onboarding-nonce": "bm9uY2U"}
ECS = "AmazonEC2ContainerServiceV20141113."
SIGNED = [
    ("us-east-1", ECS + "DescribeTasks", '{"cluster":"bookinfo","tasks":["3a151358f03a4e32bf8cd401c1c74653"]}'),
    ("eu-west-1", ECS + "DescribeTaskDefinition", '{"taskDefinition":"a b  c"}'),
]


def credentials(key, token):
    return {"access_key_id": key[0], "secret_access_key": key[1], "session_token": token}


def presigned(key, token, region, host):
    request = AWSRequest("GET", f"https://{host}/?Action=GetCallerIdentity&Version=2011-06-15", headers=dict(BINDING))
    botocore.auth.SigV4QueryAuth(Credentials(*key, token), "sts", region, expires=60).add_auth(request)
    return {"credentials": credentials(key, token), "region": region, "host": host, "headers": BINDING, "url": request.url}


def signed(key, token, region, target, body):
    host = f"ecs.{region}.amazonaws.com"
    headers = {"host": host, "content-type": "application/x-amz-json-1.1", "x-amz-target": target}
    request = AWSRequest("POST", f"https://{host}/", data=body.encode(), headers=headers)
    botocore.auth.SigV4Auth(Credentials(*key, token), "ecs", region).add_auth(request)
    authorization = request.headers["Authorization"]
    vector = {"credentials": credentials(key, token), "service": "ecs", "region": region, "host": host}
    return vector | {"target": target, "body": body, "authorization": authorization}


with mock.patch.object(botocore.auth, "get_current_datetime", lambda *_, **__: NOW):
    vectors = {
        "botocore": botocore.__version__,
        "seconds": SECONDS,
        "presigned": [presigned(key, token, *place) for key, token in [(ROLE, ODD_TOKEN), (USER, None)] for place in PRESIGNED],
        "signed": [signed(key, token, *call) for key, token in [(ROLE, TOKEN), (USER, None)] for call in SIGNED],
    }
print(json.dumps(vectors, indent=1, ensure_ascii=False))
