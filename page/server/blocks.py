"""The page as Gradio serves it, without the work that Gradio does for what an event does not change."""

from copy import copy
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.blocks import convert_component_dict_to_list
from gradio.state_holder import SessionState


class Blocks(gr.Blocks):
    """A page whose handlers may name many components as outputs and change few of them at a time.

    Gradio rebuilds the component of every output, even if the event does not change it. With forty outputs and fifty
    visitors who watch jobs, that keeps a core busy, and previews wait.
    """

    async def postprocess_data(
        self,
        block_fn: BlockFunction,
        predictions: list[Any] | dict[Any, Any],
        state: SessionState | None,
    ) -> list[Any]:
        """Return what the outputs of a handler become; what is left alone is skipped.

        Args:
            block_fn: The handler.
            predictions: What it returned: a value for each output, or values by component.
            state: The visitor's session.
        """
        outputs = list(block_fn.outputs)
        if len(outputs) == 1:  # Its value is not in a list, and may be one.
            return await super().postprocess_data(block_fn, predictions, state)
        values = (
            convert_component_dict_to_list(outputs, predictions)
            if isinstance(predictions, dict)
            else predictions
        )
        if not isinstance(values, list | tuple) or len(values) != len(outputs):
            return await super().postprocess_data(block_fn, predictions, state)
        changed = [number for number, value in enumerate(values) if not _is_skip(value)]
        results: list[Any] = [None if output.stateful else gr.skip() for output in outputs]
        if not changed:
            return results
        function = copy(block_fn)
        function.outputs = [outputs[number] for number in changed]
        given = [values[number] for number in changed]
        shown = await super().postprocess_data(function, given if len(given) > 1 else given[0], state)
        for number, value in zip(changed, shown, strict=True):
            results[number] = value
        return results


def _is_skip(value: object) -> bool:
    return isinstance(value, dict) and value == gr.skip()
