#pragma once
static bool attention_sm90_wanted(const AttnForward&) { return false; }
static void attention_forward_sm90(const AttnForward&) {}
