package paddock_test

import data.paddock
import data.paddock_cases.closed
import data.paddock_cases.good
import data.paddock_cases.groups

decided(document) := answer if {
	answer := paddock.decision with input as document with data.groups as groups with data.closed as closed
}

test_a_permitted_chat_is_allowed_with_its_obligation if {
	decided(good) == {
		"allow": true,
		"reasons": ["group-permits-model"],
		"obligations": {"max_tokens": 512},
	}
}

test_the_most_generous_group_sets_the_obligation if {
	document := json.patch(good, [{"op": "replace", "path": "/principal/groups", "value": ["staff", "research"]}])
	decided(document).obligations == {"max_tokens": 4096}
}

test_a_refusal_gives_every_reason_in_order_and_no_obligation if {
	document := json.patch(good, [
		{"op": "replace", "path": "/principal/groups", "value": []},
		{"op": "replace", "path": "/principal/models", "value": ["other"]},
	])
	decided(document) == {
		"allow": false,
		"reasons": ["model-outside-token", "no-group-permits-model"],
		"obligations": {},
	}
}

test_an_input_that_is_no_object_is_denied if {
	every document in [null, true, 1, "text", [], {}] {
		decided(document).allow == false
	}
}

# Nothing denies and yet nothing says how much is permitted: this cannot happen, and if it does the default holds.
test_a_contradiction_is_denied if {
	answer := paddock.decision with input as {} with paddock.deny as set() with data.groups as {}
	answer == {"allow": false, "reasons": ["input-incomplete"], "obligations": {}}
}

test_without_any_data_everything_is_denied if {
	answer := paddock.decision with input as good
	answer.allow == false
	answer.reasons == ["model-closed", "no-group-permits-model", "subject-closed"]
}

test_one_reason_to_deny_outweighs_a_group_that_permits if {
	document := json.patch(good, [{"op": "replace", "path": "/principal/subject", "value": "mallory"}])
	decided(document) == {"allow": false, "reasons": ["subject-closed"], "obligations": {}}
}
