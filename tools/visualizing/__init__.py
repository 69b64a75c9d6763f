"""What a model looks at: computed, and drawn."""
