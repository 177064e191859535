"""The processes of a run before and after their work: who is who, stops that are asked for, how all end when one does.

`environment` answers without torch; `together` meets and parts by torch.distributed, for `amp.run.world` alone.
"""
