# tensorboard_check.py DIR: the scalars that TensorBoard finds in a folder of event files, a line each: tag step value.
# Exit code 3: the tensorboard package is not there.
import sys

try:
    from tensorboard.backend.event_processing.event_accumulator import SCALARS, TENSORS, EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray
except ImportError:
    sys.exit(3)

events = EventAccumulator(sys.argv[1], size_guidance={SCALARS: 0, TENSORS: 0})
events.Reload()
tags = events.Tags()
for tag in sorted(tags["scalars"]):
    for event in events.Scalars(tag):
        print(tag, event.step, "%.7g" % event.value)
for tag in sorted(tags["tensors"]):
    for event in events.Tensors(tag):
        print(tag, event.step, "%.7g" % make_ndarray(event.tensor_proto))
