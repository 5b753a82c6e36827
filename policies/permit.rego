# What must hold. Every name here is a positive fact, true or undefined, never false.
package paddock

operation_known if input.action.operation in {"chat", "complete", "embed", "rerank", "tokenise", "list", "metrics"}

# Numbers about the whole appliance: no model is asked for.
asks_metrics if input.action.operation == "metrics"

# Closing stops somebody, or a model, at once and for every group. Missing lists are not empty lists: they deny.
subject_open if {
	every subject in data.closed.subjects {
		subject != input.principal.subject
	}
}

model_open if {
	every model in data.closed.models {
		model != input.model.name
		model != input.model.base
		every one in input.model.companions {
			model != one.name
		}
	}
}

token_covers_model if names_model(input.principal.models)

model_open if asks_metrics

# The tokens that one answer may have: the largest number among the groups that permit the model.
permitted_tokens := max(group_tokens) if count(group_tokens) > 0

group_tokens contains rule.max_tokens if {
	some group in input.principal.groups
	rule := data.groups[group]
	names_model(rule.models)
	whole_number(rule.max_tokens)
	rule.max_tokens > 0
}

model_permitted if permitted_tokens

model_permitted if asks_metrics

metrics_permitted if {
	some group in input.principal.groups
	group in data.metrics.groups
}

names_model(models) if "*" in models

names_model(models) if input.model.name in models
