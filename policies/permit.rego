# What must hold. Every name here is a positive fact, true or undefined, never false.
package paddock

operation_known if input.action.operation in {"chat", "complete", "embed", "rerank", "tokenise", "list", "metrics", "describe"}

# Numbers about the whole appliance: no model is asked for.
asks_metrics if input.action.operation == "metrics"

# The description of the API: it tells nothing of this appliance, so whoever may use anything of it may read it.
asks_description if input.action.operation == "describe"

about_no_model if asks_metrics

about_no_model if asks_description

# Closing stops somebody, or a model, at once and for every group. Missing lists are not empty lists: they deny.
subject_open if {
	every subject in data.closed.subjects {
		subject != input.principal.subject
		every party in nearest {
			subject != party.subject
		}
	}
}

# Who acts for the principal: the nearest only. Those behind are for the record (RFC 8693 section 4.1).
nearest := array.slice(input.principal.acting, 0, 1) if is_array(input.principal.acting)

# To act for others is permitted by name: by a group of the token that the service brings, or by issuer and subject.
delegation_permitted if nearest == []

delegation_permitted if {
	some group in nearest[0].groups
	group in data.delegates.groups
}

delegation_permitted if {
	some party in data.delegates.parties
	party.issuer == nearest[0].issuer
	party.subject == nearest[0].subject
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

token_covers_model if asks_description

model_open if about_no_model

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

model_permitted if about_no_model

metrics_permitted if {
	some group in input.principal.groups
	group in data.metrics.groups
}

description_permitted if {
	some group in input.principal.groups
	is_object(data.groups[group])
}

names_model(models) if "*" in models

names_model(models) if input.model.name in models
