"""What an unload says that it returned."""

from __future__ import annotations

from child import run_child


def test_the_steps_of_an_unload_count_what_goes_with_the_last_reference() -> None:
    """A model of large blocks goes back to the system when it is let go, before anything else is done: that is counted too."""
    returned_mib = run_child(
        """
        import mlup_stream as mlup
        class Model:
            def __init__(self):
                self.block = b"x" * (64 << 20)
            def predict(self, X):
                return X
        up = mlup.UP(ml_model=Model(), conf=mlup.Config(memory_learned=False))
        up.ml.load()
        answer(sum(step.returned_bytes for step in up.ml.unload()) >> 20)
        """
    )
    assert returned_mib >= 60


def test_an_unload_without_a_descriptor_left_gives_back_all_the_same() -> None:
    """RSS cannot be read then: no figure is given, and the model goes."""
    answered = run_child(
        """
        import os, resource
        import mlup_stream as mlup
        class Model:
            def predict(self, X):
                return X
        up = mlup.UP(ml_model=Model(), conf=mlup.Config(memory_learned=False))
        up.ml.load()
        up.ml.unload()
        up = mlup.UP(ml_model=Model(), conf=mlup.Config(memory_learned=False))
        up.ml.load()
        resource.setrlimit(resource.RLIMIT_NOFILE, (64, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
        taken = []
        try:
            while True:
                taken.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            pass
        names = [step.name for step in up.ml.unload()]
        for each in taken:
            os.close(each)
        answer([names, up.ml.loaded])
        """
    )
    assert answered == [["raw data released", "collector run", "allocator trimmed", "model let go"], False]
