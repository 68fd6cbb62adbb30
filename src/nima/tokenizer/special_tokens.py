"""The tokens that are no text, and ChatML, the layout of a chat where no other is asked for."""

END_OF_TEXT = "<|endoftext|>"
PAD = "<|pad|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

SPECIAL_TOKENS = (END_OF_TEXT, PAD, TURN_START, TURN_END)
"""Their ids are their places here."""

# Contents are trimmed: an empty first line would merge with the line break after the role, and the same
# answer would have other tokens as a whole conversation than behind a prompt.
CHAT_TEMPLATE = (
    "{{ bos_token }}"
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'].strip() + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
