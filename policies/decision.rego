# The one question that Paddock asks, and the only shape of an answer to it. Judged again in appliance/core/decide.py.
package paddock

# Reached only when the rules below contradict each other or fail: an answer is never undefined, and never an allow.
default decision := {"allow": false, "reasons": ["input-incomplete"], "obligations": {}}

decision := {
	"allow": true,
	"reasons": ["group-permits-model"],
	"obligations": {"max_tokens": permitted_tokens},
} if {
	count(deny) == 0
	not about_no_model
}

decision := {"allow": true, "reasons": ["group-permits-metrics"], "obligations": {}} if {
	count(deny) == 0
	asks_metrics
	metrics_permitted
}

decision := {"allow": true, "reasons": ["group-permits-description"], "obligations": {}} if {
	count(deny) == 0
	asks_description
	description_permitted
}

decision := {"allow": false, "reasons": sort(deny), "obligations": {}} if {
	count(deny) > 0
}
