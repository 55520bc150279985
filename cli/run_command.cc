// caravan run: submit one prompt and stream the reply.

#include <cstdio>
#include <iostream>
#include <iterator>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_format.h"
#include "base/status_macros.h"
#include "caravan/v1/jobs.pb.h"
#include "cli/ask.h"
#include "cli/client.h"
#include "cli/commands.h"
#include "cli/generation_flags.h"
#include "cli/reply_printer.h"
#include "cli/stop_signals.h"

namespace caravan {
namespace {

struct RunFlags {
  ClientFlags client;
  GenerationFlags generation;
  std::string prompt;
};

std::string FormatSummary(const Reply& reply) {
  const v1::JobFinished& finished = reply.finished;
  return absl::StrFormat(
      "job %d: %d prompt tokens, %d generated (%s); first token after %.3f s, then %.1f tokens/s\n",
      reply.job_id, finished.prompt_tokens(), finished.completion_tokens(),
      finished.reason() == v1::FINISH_REASON_LENGTH ? "cut at the limit" : "the model ended",
      finished.time_to_first_token_s(), finished.decode_tokens_per_s());
}

absl::Status Run(const RunFlags& flags) {
  const StopSignals signals;
  CARAVAN_ASSIGN_OR_RETURN(const std::shared_ptr<grpc::Channel> channel,
                           Connect(flags.client, signals.token()));
  v1::SubmitRequest request = flags.generation.NewRequest();
  AddMessage(request, "user", flags.prompt);
  ReplyPrinter printer;
  Reply reply;
  const absl::Status status =
      Ask(channel, flags.client, std::move(request), signals.token(), printer, reply);
  if (status.ok()) std::fputs(FormatSummary(reply).c_str(), stderr);
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
  flags->generation.AddTo(*command);
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
