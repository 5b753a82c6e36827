package paddock_metrics_test

import data.paddock
import data.paddock_cases.closed
import data.paddock_cases.good
import data.paddock_cases.good_metrics
import data.paddock_cases.groups
import data.paddock_cases.metrics

decided(patches) := answer if {
	document := json.patch(good_metrics, patches)
	answer := paddock.decision with input as document
		with data.groups as groups
		with data.closed as closed
		with data.metrics as metrics
}

replaced(path, value) := decided([{"op": "replace", "path": path, "value": value}])

refused(answer, reasons) if answer == {"allow": false, "reasons": reasons, "obligations": {}}

test_a_group_that_is_named_reads_them if {
	decided([]) == {"allow": true, "reasons": ["group-permits-metrics"], "obligations": {}}
}

test_no_group_of_models_reads_them if {
	every names in [[], ["staff"], ["research"], ["Watch"], ["*"]] {
		refused(replaced("/principal/groups", names), ["no-group-permits-metrics"])
	}
}

test_reading_them_permits_no_model if {
	answer := paddock.decision with input as json.patch(good, [{
		"op": "replace",
		"path": "/principal/groups",
		"value": ["watch"],
	}])
		with data.groups as groups
		with data.closed as closed
		with data.metrics as metrics
	refused(answer, ["no-group-permits-model"])
}

test_a_token_confined_to_models_does_not_read_of_all_of_them if {
	refused(replaced("/principal/models", ["demo"]), ["model-outside-token"])
}

test_a_closed_subject_does_not_read_them if {
	refused(replaced("/principal/subject", "mallory"), ["subject-closed"])
}

test_a_model_that_comes_with_the_question_is_not_judged if {
	refused(replaced("/model", good.model), ["input-incomplete"])
}

test_without_a_model_nothing_else_is_judged if {
	every operation in ["chat", "complete", "embed", "rerank", "tokenise", "list"] {
		answer := replaced("/action/operation", operation)
		refused(answer, ["input-incomplete", "model-closed", "no-group-permits-model"])
	}
}

test_data_that_does_not_speak_of_them_permits_nobody if {
	every missing in [null, {}, {"groups": null}, {"groups": "watch"}, {"groups": {}}, []] {
		answer := paddock.decision with input as good_metrics
			with data.groups as groups
			with data.closed as closed
			with data.metrics as missing
		refused(answer, ["no-group-permits-metrics"])
	}
	unspoken := paddock.decision with input as good_metrics with data.groups as groups with data.closed as closed
	refused(unspoken, ["no-group-permits-metrics"])
}

# Nothing denies and yet no group permits: this cannot happen, and if it does the default holds.
test_a_contradiction_is_denied if {
	answer := paddock.decision with input as good_metrics with paddock.deny as set() with data.metrics as {}
	refused(answer, ["input-incomplete"])
}
