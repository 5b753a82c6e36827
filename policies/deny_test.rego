package paddock_test

import data.paddock
import data.paddock_cases.closed
import data.paddock_cases.good
import data.paddock_cases.groups

reasons(patches) := denied if {
	document := json.patch(good, patches)
	denied := paddock.deny with input as document with data.groups as groups with data.closed as closed
}

replaced(path, value) := reasons([{"op": "replace", "path": path, "value": value}])

test_nothing_denies_the_good_case if reasons([]) == set()

test_an_unknown_operation_is_denied if {
	replaced("/action/operation", "pull") == {"operation-unknown"}
	replaced("/action/operation", "Chat") == {"operation-unknown"}
}

test_every_operation_of_ours_is_known if {
	every operation in ["list", "complete", "embed", "rerank", "tokenise"] {
		replaced("/action/operation", operation) == set()
	}
}

test_a_closed_subject_is_denied if replaced("/principal/subject", "mallory") == {"subject-closed"}

test_a_closed_model_is_denied_to_every_group if {
	reasons([
		{"op": "replace", "path": "/model/name", "value": "withdrawn"},
		{"op": "replace", "path": "/principal/groups", "value": ["research"]},
	]) == {"model-closed"}
}

test_a_closed_file_is_denied_under_every_name_that_it_is_served_under if {
	replaced("/model/base", "withdrawn") == {"model-closed"}
	withdrawn := {"kind": "draft", "name": "withdrawn", "digest": "sha256:2c", "signer": "release"}
	replaced("/model/companions", [withdrawn]) == {"model-closed"}
	replaced("/model/companions", [object.union(withdrawn, {"name": "small"})]) == set()
}

test_missing_lists_of_what_is_closed_deny if {
	answer := paddock.deny with input as good with data.groups as groups with data.closed as {}
	answer == {"subject-closed", "model-closed"}
}

test_a_token_confined_to_other_models_is_denied if {
	replaced("/principal/models", ["other"]) == {"model-outside-token"}
	replaced("/principal/models", []) == {"model-outside-token"}
	replaced("/principal/models", ["dem", "demo2", "DEMO"]) == {"model-outside-token"}
}

test_a_token_that_names_the_model_is_enough if replaced("/principal/models", ["demo"]) == set()

test_a_group_without_the_model_is_denied if replaced("/model/name", "other") == {"no-group-permits-model"}

test_no_group_and_unknown_groups_are_denied if {
	replaced("/principal/groups", []) == {"no-group-permits-model"}
	replaced("/principal/groups", ["nobody"]) == {"no-group-permits-model"}
}

test_a_group_whose_entry_is_not_complete_permits_nothing if {
	every group in ["broken", "nothing", "half", "wordy", "bare"] {
		replaced("/principal/groups", [group]) == {"no-group-permits-model"}
	}
}

test_an_incomplete_input_is_denied_although_all_else_is_in_order if {
	reasons([{"op": "remove", "path": "/peer/address"}]) == {"input-incomplete"}
}
