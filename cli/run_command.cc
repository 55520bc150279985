// caravan run: submit one prompt and stream the reply.

#include <grpcpp/grpcpp.h>
#include <unistd.h>

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "caravan/v1/jobs.grpc.pb.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/stop_signals.h"
#include "cluster/grpc_status.h"

namespace caravan {
namespace {

struct RunFlags {
  ClientFlags client;
  std::string prompt;
  std::string system;
  uint32_t max_tokens = 0;
  float temperature = 0;
  float top_p = 0;
  uint32_t top_k = 0;
  uint64_t seed = 0;
};

/// Prints a reply as it grows: the thought dim on a terminal, the answer plain.
class ReplyPrinter {
 public:
  ~ReplyPrinter() { EndLine(); }

  void Print(const v1::TextDelta& delta) {
    if (delta.text().empty()) return;
    const bool dim = styled_ && delta.part() == v1::TEXT_PART_THOUGHT;
    const std::string text = dim ? absl::StrCat("\033[2m", delta.text(), "\033[0m") : delta.text();
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
    at_line_start_ = delta.text().back() == '\n';
  }

  void EndLine() {
    if (!at_line_start_) std::fputc('\n', stdout);
    at_line_start_ = true;
    std::fflush(stdout);
  }

 private:
  const bool styled_ = ::isatty(STDOUT_FILENO) == 1;
  bool at_line_start_ = true;
};

std::string FormatSummary(uint64_t job_id, const v1::JobFinished& finished) {
  return absl::StrFormat(
      "job %d: %d prompt tokens, %d generated (%s); first token after %.3f s, then %.1f tokens/s\n",
      job_id, finished.prompt_tokens(), finished.completion_tokens(),
      finished.reason() == v1::FINISH_REASON_LENGTH ? "cut at the limit" : "the model ended",
      finished.time_to_first_token_s(), finished.decode_tokens_per_s());
}

v1::SubmitRequest MakeRequest(const RunFlags& flags) {
  v1::SubmitRequest request;
  if (!flags.system.empty()) {
    v1::ChatMessage& system = *request.add_messages();
    system.set_role("system");
    system.set_content(flags.system);
  }
  v1::ChatMessage& user = *request.add_messages();
  user.set_role("user");
  user.set_content(flags.prompt);
  request.set_max_tokens(flags.max_tokens);
  request.mutable_sampling()->set_temperature(flags.temperature);
  request.mutable_sampling()->set_top_p(flags.top_p);
  request.mutable_sampling()->set_top_k(flags.top_k);
  request.mutable_sampling()->set_seed(flags.seed);
  return request;
}

absl::Status Run(const RunFlags& flags) {
  const StopSignals signals;
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel, Connect(flags.client));
  grpc::ClientContext context;
  // Hanging up cancels the job.
  const std::stop_callback cancel(signals.token(), [&context] { context.TryCancel(); });
  const std::unique_ptr<v1::Jobs::Stub> stub = v1::Jobs::NewStub(channel);
  const auto events = stub->Submit(&context, MakeRequest(flags));

  ReplyPrinter printer;
  v1::JobEvent event;
  uint64_t job_id = 0;
  while (events->Read(&event)) {
    if (event.has_accepted()) {
      job_id = event.accepted().job_id();
    } else if (event.has_delta()) {
      printer.Print(event.delta());
    } else if (event.has_finished()) {
      printer.EndLine();
      std::fputs(FormatSummary(job_id, event.finished()).c_str(), stderr);
    }
  }
  absl::Status status = FromGrpcStatus(events->Finish());
  if (absl::IsUnavailable(status)) {
    status = Annotate(status, absl::StrCat("coordinator ", flags.client.coordinator));
  }
  if (signals.token().stop_requested()) {
    return absl::CancelledError(absl::StrCat("job ", job_id, " is cancelled"));
  }
  return status;
}

}  // namespace

void AddRunCommand(CLI::App& app, CommandBody& body) {
  CLI::App* const command =
      app.add_subcommand("run", "Submit one prompt and stream the reply; Ctrl-C cancels the job");
  const auto flags = std::make_shared<RunFlags>();
  AddConfigOption(*command);
  flags->client.AddTo(*command);
  command->add_option("prompt", flags->prompt, "What to ask; - reads it from standard input")
      ->required();
  command->add_option("--system", flags->system, "System text that goes before the prompt");
  command
      ->add_option("--max-tokens", flags->max_tokens,
                   "Longest reply, in tokens; 0: what the context leaves")
      ->capture_default_str();
  command
      ->add_option("--temperature", flags->temperature,
                   "0 takes the likeliest token; larger values vary more")
      ->check(CLI::Range(0.0, 100.0))
      ->capture_default_str();
  command
      ->add_option(
          "--top-p", flags->top_p,
          "Draw from the likeliest tokens of at least this probability together; 0 or 1: all")
      ->check(CLI::Range(0.0, 1.0))
      ->capture_default_str();
  command->add_option("--top-k", flags->top_k, "Draw from the K likeliest tokens; 0: all")
      ->capture_default_str();
  command->add_option("--seed", flags->seed, "Of the draw; the same seed gives the same reply")
      ->capture_default_str();
  command->callback([flags, &body] {
    body = [flags] {
      if (flags->prompt == "-") {
        flags->prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
      }
      return ReportStatus(Run(*flags));
    };
  });
}

}  // namespace caravan
