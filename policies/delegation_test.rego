package paddock_delegation_test

import data.paddock
import data.paddock_cases.closed
import data.paddock_cases.delegates
import data.paddock_cases.good
import data.paddock_cases.good_description
import data.paddock_cases.good_metrics
import data.paddock_cases.groups
import data.paddock_cases.metrics

service := {
	"issuer": "https://issuer.example",
	"subject": "webui",
	"client_id": "webui",
	"groups": ["services"],
}

stranger := object.union(service, {"groups": ["staff", "research", "watch"]})

# The `act` of a token names no more than these two.
agent := {"issuer": "https://issuer.example", "subject": "agent", "client_id": "", "groups": []}

decided(case, acting) := answer if {
	document := json.patch(case, [{"op": "replace", "path": "/principal/acting", "value": acting}])
	answer := paddock.decision with input as document
		with data.groups as groups
		with data.closed as closed
		with data.metrics as metrics
		with data.delegates as delegates
}

refused(answer, reasons) if answer == {"allow": false, "reasons": reasons, "obligations": {}}

test_a_service_that_is_named_acts_for_a_user if {
	every acting in [[service], [agent], [service, stranger], [object.union(service, {"groups": ["x", "services"]})]] {
		decided(good, acting) == {"allow": true, "reasons": ["group-permits-model"], "obligations": {"max_tokens": 512}}
		decided(good_metrics, acting).allow == true
		decided(good_description, acting).allow == true
	}
}

test_a_service_that_is_not_named_acts_for_nobody if {
	every case in [good, good_metrics, good_description] {
		every party in [stranger, object.union(service, {"groups": []}), object.union(service, {"groups": ["*"]})] {
			refused(decided(case, [party]), ["delegation-not-permitted"])
		}
	}
}

test_issuer_and_subject_are_named_together if {
	every other in [{"issuer": "https://other.example"}, {"subject": "agent2"}, {"subject": "Agent"}] {
		refused(decided(good, [object.union(agent, other)]), ["delegation-not-permitted"])
	}
}

test_only_the_nearest_is_judged if {
	refused(decided(good, [stranger, service]), ["delegation-not-permitted"])
	refused(decided(good, [stranger, agent]), ["delegation-not-permitted"])
}

test_a_service_gives_a_user_nothing if {
	document := json.patch(good, [{"op": "replace", "path": "/principal/groups", "value": ["nobody"]}])
	refused(decided(document, [object.union(service, {"groups": ["services", "research"]})]), ["no-group-permits-model"])
}

test_a_user_may_not_be_a_service_by_the_users_own_groups if {
	document := json.patch(good, [{"op": "replace", "path": "/principal/groups", "value": ["staff", "services"]}])
	refused(decided(document, [stranger]), ["delegation-not-permitted"])
}

test_closing_a_service_closes_it_for_all_its_users if {
	refused(decided(good, [object.union(service, {"subject": "mallory"})]), ["subject-closed"])
	decided(good, [service, object.union(agent, {"subject": "mallory"})]).allow == true
}

test_data_that_is_silent_permits_nobody_to_act if {
	document := json.patch(good, [{"op": "replace", "path": "/principal/acting", "value": [service]}])
	every missing in [null, {}, [], "services", {"groups": "services"}, {"groups": {}, "parties": "agent"}, {"parties": [{}]}] {
		answer := paddock.decision with input as document
			with data.groups as groups
			with data.closed as closed
			with data.delegates as missing
		refused(answer, ["delegation-not-permitted"])
	}
	unspoken := paddock.decision with input as document with data.groups as groups with data.closed as closed
	refused(unspoken, ["delegation-not-permitted"])
}

test_without_a_word_on_who_acts_nothing_is_permitted if {
	every patch in [{"op": "remove", "path": "/principal/acting"}, {"op": "replace", "path": "/principal/acting", "value": {}}] {
		answer := paddock.decision with input as json.patch(good, [patch])
			with data.groups as groups
			with data.closed as closed
			with data.delegates as delegates
		refused(answer, ["delegation-not-permitted", "input-incomplete", "subject-closed"])
	}
}
