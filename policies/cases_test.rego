# One complete request and data that permits it; the tests beside this file take something away from it.
package paddock_cases

groups := {
	"staff": {"models": ["demo"], "max_tokens": 512},
	"research": {"models": ["*"], "max_tokens": 4096},
	"broken": {"models": ["demo"]},
	"nothing": {"models": ["*"], "max_tokens": 0},
	"half": {"models": ["*"], "max_tokens": 0.5},
	"wordy": {"models": ["*"], "max_tokens": "many"},
	"bare": {"models": "demo", "max_tokens": 512},
}

metrics := {"groups": ["watch"]}

delegates := {
	"groups": ["services"],
	"parties": [{"issuer": "https://issuer.example", "subject": "agent"}],
}

closed := {"subjects": ["mallory"], "models": ["withdrawn"]}

good := {
	"principal": {
		"subject": "alice",
		"client_id": "notebook",
		"issuer": "https://issuer.example",
		"groups": ["staff"],
		"models": ["*"],
		"acting": [],
	},
	"action": {"operation": "chat", "method": "POST", "route": "/v1/chat/completions"},
	"model": {
		"name": "demo",
		"digest": "sha256:2c26b46b68ffc68ff99b453c1d30413413422d706483bfa0f98a5e886266e7ae",
		"signer": "release",
		"base": "demo",
		"companions": [],
	},
	"request": {
		"max_tokens": 128,
		"messages": 2,
		"prompt_bytes": 240,
		"stream": true,
		"tools": 0,
		"constraint": "none",
		"choices": 1,
	},
	"peer": {"address": "192.0.2.7"},
	"time": {"unix_seconds": 1700000000, "weekday": 1, "minute_of_day": 1333},
}

# The other good case: numbers about the whole appliance, for one who may use no model.
good_metrics := json.patch(good, [
	{"op": "replace", "path": "/principal/groups", "value": ["watch"]},
	{"op": "replace", "path": "/action", "value": {"operation": "metrics", "method": "GET", "route": "/metrics"}},
	{"op": "replace", "path": "/model", "value": null},
	{"op": "replace", "path": "/request/max_tokens", "value": null},
])

# And the description of the API, for one of any group.
good_description := json.patch(good_metrics, [
	{"op": "replace", "path": "/principal/groups", "value": ["staff"]},
	{"op": "replace", "path": "/action", "value": {"operation": "describe", "method": "GET", "route": "/openapi.json"}},
])
