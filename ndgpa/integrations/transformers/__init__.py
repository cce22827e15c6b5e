"""Hugging Face transformers: turn the attention of a model into GPA, and back.

    model = AutoModel.from_pretrained("facebook/dinov2-with-registers-base")
    enable(model, rule=12, block=4)
    features = model(pixel_values).last_hidden_state
    disable(model)

Needs the extra `transformers`.
"""

from ndgpa.integrations.transformers.switch import disable as disable, enable as enable
