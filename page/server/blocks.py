"""The page as Gradio serves it, without the work that Gradio repeats for each visitor and each event."""

from copy import copy
from typing import Any

import gradio as gr
from gradio.block_function import BlockFunction
from gradio.blocks import Block, BlocksConfig, convert_component_dict_to_list
from gradio.renderable import Renderable
from gradio.state_holder import SessionState


class Components(BlocksConfig):
    """The components of a page, each described once.

    Gradio describes every component again for each new visitor. For three hundred components, that takes 50 ms, during
    which the page answers nobody else.
    """

    def __init__(self, root_block: gr.Blocks) -> None:
        super().__init__(root_block)
        self._described: dict[int, tuple[Block, dict[str, Any]]] = {}

    def __copy__(self) -> "Components":
        """Return the components for one visitor, who may replace some of them."""
        other = Components(self.root_block)
        vars(other).update(vars(super().__copy__()))
        other._described = self._described
        return other

    def config_for_block(  # type: ignore[override]  # Gradio's is static, and called on an instance.
        self, _id: int, rendered_ids: list[int], block: Block, renderable: Renderable | None = None
    ) -> dict[str, Any]:
        """Return the description of a component, which the visitor's session may change.

        Args:
            _id: Its number.
            rendered_ids: The numbers of the components that were rendered with it.
            block: The component.
            renderable: What rendered it while the page was open; None for a part of the page as it opens.
        """
        if renderable is not None or block is not self.root_block.blocks.get(_id):
            return super().config_for_block(_id, rendered_ids, block, renderable)
        known, config = self._described.get(_id, (None, {}))
        if known is not block:
            config = super().config_for_block(_id, rendered_ids, block)
            self._described[_id] = block, config
        return config | {"props": dict(config["props"])}


class Blocks(gr.Blocks):
    """A page of many components, with handlers that name many of them as outputs and change few at a time.

    Gradio rebuilds the component of every output, even if the event does not change it. With forty outputs and fifty
    visitors who watch jobs, that keeps a core busy, and previews wait.
    """

    def __init__(self, **settings: Any) -> None:
        """Create an empty page.

        Args:
            settings: The arguments of `gr.Blocks`.
        """
        super().__init__(**settings)
        components = Components(self)
        vars(components).update(vars(self.default_config))
        self.default_config = components

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
