"""The mathematics of reinforcement learning from rewards: pure functions of tensors, in fp32."""
