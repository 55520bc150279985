#include "cli/generation_flags.h"

namespace caravan {

void GenerationFlags::AddTo(CLI::App& command) {
  command.add_option("--system", system, "System text that goes before the prompt");
  command
      .add_option("--max-tokens", max_tokens,
                  "Longest reply, in tokens; 0: what the context leaves")
      ->capture_default_str();
  command
      .add_option("--temperature", temperature,
                  "0 takes the likeliest token; larger values vary more")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command
      .add_option(
          "--top-p", top_p,
          "Draw from the likeliest tokens of at least this probability together; 0 or 1: all")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command.add_option("--top-k", top_k, "Draw from the K likeliest tokens; 0: all")
      ->capture_default_str();
  command.add_option("--seed", seed, "Of the draw; the same seed gives the same reply")
      ->capture_default_str();
}

v1::SubmitRequest GenerationFlags::NewRequest() const {
  v1::SubmitRequest request;
  if (!system.empty()) AddMessage(request, "system", system);
  request.set_max_tokens(max_tokens);
  request.mutable_sampling()->set_temperature(temperature);
  request.mutable_sampling()->set_top_p(top_p);
  request.mutable_sampling()->set_top_k(top_k);
  request.mutable_sampling()->set_seed(seed);
  return request;
}

void AddMessage(v1::SubmitRequest& request, const std::string& role, const std::string& content) {
  v1::ChatMessage& message = *request.add_messages();
  message.set_role(role);
  message.set_content(content);
}

}  // namespace caravan
