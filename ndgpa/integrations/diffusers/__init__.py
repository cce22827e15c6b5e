"""Hugging Face diffusers: turn the self-attention of a model into GPA, and back.

    pipe = WanPipeline.from_pretrained("Wan-AI/Wan2.1-T2V-1.3B-Diffusers")
    enable(pipe.transformer, rule=24, block=(1, 4, 4))
    video = pipe("a cat walks on grass").frames
    disable(pipe.transformer)

Needs the extra `diffusers`.
"""

from ndgpa.integrations.diffusers.switch import disable as disable, enable as enable
