package paddock_description_test

import data.paddock
import data.paddock_cases.closed
import data.paddock_cases.good_description
import data.paddock_cases.groups

decided(patches) := answer if {
	document := json.patch(good_description, patches)
	answer := paddock.decision with input as document with data.groups as groups with data.closed as closed
}

replaced(path, value) := decided([{"op": "replace", "path": path, "value": value}])

refused(answer, reasons) if answer == {"allow": false, "reasons": reasons, "obligations": {}}

permitted(answer) if answer == {"allow": true, "reasons": ["group-permits-description"], "obligations": {}}

test_whoever_is_of_a_known_group_reads_it if {
	permitted(decided([]))
	permitted(replaced("/principal/groups", ["nobody", "research"]))
}

test_a_token_confined_to_models_reads_it if permitted(replaced("/principal/models", ["demo"]))

test_strangers_do_not if {
	every names in [[], ["nobody"], ["Staff"], ["*"], ["watch"]] {
		refused(replaced("/principal/groups", names), ["no-group-permits-description"])
	}
}

test_a_closed_subject_does_not if refused(replaced("/principal/subject", "mallory"), ["subject-closed"])

test_a_model_that_comes_with_the_question_is_not_judged if {
	refused(replaced("/model", {"name": "demo"}), ["input-incomplete"])
}

test_data_of_another_form_permits_nobody if {
	every missing in [null, {}, {"staff": true}, {"staff": []}, ["staff"], "staff"] {
		answer := paddock.decision with input as good_description with data.groups as missing with data.closed as closed
		refused(answer, ["no-group-permits-description"])
	}
}

# Nothing denies and yet no group permits: this cannot happen, and if it does the default holds.
test_a_contradiction_is_denied if {
	answer := paddock.decision with input as good_description with paddock.deny as set() with data.groups as {}
	refused(answer, ["input-incomplete"])
}
