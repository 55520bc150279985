// caravan: one binary, with a subcommand for each thing that a person does.

#include <stdlib.h>

#include <csignal>
#include <cstdio>

#include "CLI/CLI.hpp"
#include "cli/command.h"
#include "cli/commands.h"
#include "cli/validators.h"

namespace {

/// `code`, unless it is that of success and what was printed, which somebody may wait for, could
/// not be written.
int FlushOutput(int code) {
  const bool printed = std::fflush(stdout) == 0 && std::ferror(stdout) == 0;
  if (code != caravan::kExitOk || printed) return code;
  std::fprintf(stderr, "caravan: standard output cannot be written\n");
  return caravan::kExitFailed;
}

}  // namespace

int main(int argc, char** argv) {
  // A reader that went away (caravan status | head) shows in write's result, not as a signal.
  std::signal(SIGPIPE, SIG_IGN);
  // gRPC's own log would stand between our sentences; whoever debugs it sets this.
  ::setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);

  CLI::App app("Caravan runs DeepSeek-R1/V3-class models on a row of cheap machines.", "caravan");
  app.set_version_flag("--version", CARAVAN_VERSION);
  app.require_subcommand(1);
  // The last of a repeated option counts, so that a script's defaults can be overridden.
  app.option_defaults()->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  app.set_help_all_flag("--help-all", "Print the help of every subcommand");
  caravan::CommandBody body;
  caravan::AddCoordinatorCommand(app, body);
  caravan::AddWorkerCommand(app, body);
  caravan::AddPackCommand(app, body);
  caravan::AddCalibrateCommand(app, body);
  caravan::AddSynthCommand(app, body);
  caravan::AddRunCommand(app, body);
  caravan::AddChatCommand(app, body);
  caravan::AddSubmitCommand(app, body);
  caravan::AddJobsCommand(app, body);
  caravan::AddCancelCommand(app, body);
  caravan::AddStatusCommand(app, body);
  caravan::AddDrainCommand(app, body);
  caravan::AddVerifyCommand(app, body);
  caravan::AddEvalCommand(app, body);
  caravan::AddTokenizeCommand(app, body);
  caravan::AddBenchCommand(app, body);
  caravan::AddPlanCommand(app, body);
  caravan::AddSimulateCommand(app, body);
  caravan::AddProbeCommand(app, body);
  caravan::AddCertsCommand(app, body);
  caravan::CheckNumbers(app);

  // CLI11 would only say that a subcommand is required.
  if (argc > 1 && argv[1][0] != '-' &&
      app.get_subcommands([&](const CLI::App* command) { return command->check_name(argv[1]); })
          .empty()) {
    std::fprintf(stderr, "caravan: there is no subcommand %s; see caravan --help\n", argv[1]);
    return caravan::kExitUsage;
  }
  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return FlushOutput(code == 0 ? caravan::kExitOk : caravan::kExitUsage);
  }
  return FlushOutput(body());
}
