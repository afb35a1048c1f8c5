"""Operations on tensors, fast on each device: attention, products, losses. They must not know layers or models."""
