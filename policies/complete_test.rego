package paddock_test

import data.paddock
import data.paddock_cases.good

complete(document) if {
	paddock.input_complete with input as document
}

fields := [
	"/principal/subject", "/principal/client_id", "/principal/issuer", "/principal/groups", "/principal/models",
	"/principal/acting",
	"/action/operation", "/action/method", "/action/route",
	"/model/name", "/model/digest", "/model/signer", "/model/base", "/model/companions",
	"/request/max_tokens", "/request/messages", "/request/prompt_bytes", "/request/stream",
	"/request/tools", "/request/constraint", "/request/choices",
	"/peer/address",
	"/time/unix_seconds", "/time/weekday", "/time/minute_of_day",
]

test_the_good_case_is_complete if complete(good)

test_an_input_without_any_one_field_is_incomplete if {
	every path in fields {
		not complete(json.patch(good, [{"op": "remove", "path": path}]))
	}
}

test_a_field_of_another_type_is_incomplete if {
	every path in fields {
		every value in [{}, -1, 1.5, ""] {
			not complete(json.patch(good, [{"op": "replace", "path": path, "value": value}]))
		}
	}
}

test_null_is_a_number_of_tokens_and_nothing_else if {
	null_accepted := {path | some path in fields; complete(json.patch(good, [{"op": "replace", "path": path, "value": null}]))}
	null_accepted == {"/request/max_tokens"}
}

test_lists_hold_text_only if {
	every path in ["/principal/groups", "/principal/models"] {
		every value in [[1], [""], [null], [["staff"]], "staff"] {
			not complete(json.patch(good, [{"op": "replace", "path": path, "value": value}]))
		}
	}
}

companion := {"kind": "adapter", "name": "style", "digest": "sha256:2c", "signer": "vendor"}

test_a_companion_is_told_whole_or_the_input_is_incomplete if {
	complete(json.patch(good, [{"op": "add", "path": "/model/companions/-", "value": companion}]))
	every field in ["kind", "name", "digest", "signer"] {
		every part in [object.remove(companion, [field]), object.union(companion, {field: ""})] {
			not complete(json.patch(good, [{"op": "add", "path": "/model/companions/-", "value": part}]))
		}
	}
}

test_who_acts_is_told_whole_or_the_input_is_incomplete if {
	party := {"issuer": "https://issuer.example", "subject": "agent", "client_id": "", "groups": []}
	complete(json.patch(good, [{"op": "add", "path": "/principal/acting/-", "value": party}]))
	every field in ["issuer", "subject", "client_id", "groups"] {
		not complete(json.patch(good, [{"op": "add", "path": "/principal/acting/-", "value": object.remove(party, [field])}]))
		not complete(json.patch(good, [{"op": "add", "path": "/principal/acting/-", "value": object.union(party, {field: 1})}]))
	}
	every field in ["issuer", "subject"] {
		not complete(json.patch(good, [{"op": "add", "path": "/principal/acting/-", "value": object.union(party, {field: ""})}]))
	}
	not complete(json.patch(good, [{"op": "add", "path": "/principal/acting/-", "value": object.union(party, {"groups": [1]})}]))
}

test_time_has_its_range if {
	not complete(json.patch(good, [{"op": "replace", "path": "/time/weekday", "value": 7}]))
	not complete(json.patch(good, [{"op": "replace", "path": "/time/minute_of_day", "value": 1440}]))
}
