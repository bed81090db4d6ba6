"""The part of a state that lies on this rank."""


def local(state):
    """This rank's part of a state, as plain tensors."""
    flat = {}
    for key, value in state.items():
        if isinstance(value, dict):
            flat.update({f"{key}.{inner}": part for inner, part in local(value).items()})
        elif hasattr(value, "local_shards"):
            flat.update({f"{key}.{i}": piece.tensor.clone() for i, piece in enumerate(value.local_shards())})
        else:
            flat[key] = value.clone()
    return flat
