package main

import (
	"fmt"

	"github.com/urfave/cli/v2"
)

// shells are those that completionScripts knows.
var shells = []string{"bash", "zsh", "fish", "powershell"}

// The scripts ask the program itself for the next words; where it has none,
// they offer files.
var completionScripts = map[string]string{
	"bash": `_sallyport() {
  local IFS=$'\n'
  COMPREPLY=($("${COMP_WORDS[0]}" "${COMP_WORDS[@]:1:COMP_CWORD}" ` + completeFlag + ` 2>/dev/null))
}
complete -o bashdefault -o default -F _sallyport sallyport
`,
	"zsh": `#compdef sallyport
_sallyport() {
  local -a found
  found=("${(@f)$("${words[1]}" "${(@)words[2,CURRENT]}" ` + completeFlag + ` 2>/dev/null)}")
  if [[ -n "${found[1]}" ]]; then compadd -- "${found[@]}"; else _files; fi
}
if [[ "${funcstack[1]}" = _sallyport ]]; then _sallyport "$@"; else compdef _sallyport sallyport; fi
`,
	"fish": `complete -c sallyport -a '(set -l w (commandline -opc); sallyport $w[2..-1] (commandline -ct) ` + completeFlag + ` 2>/dev/null)'
`,
	"powershell": `Register-ArgumentCompleter -Native -CommandName sallyport -ScriptBlock {
  param($word, $ast, $at)
  $words = @($ast.CommandElements | Select-Object -Skip 1 | ForEach-Object { $_.ToString() })
  if ($word -eq '') { $words += '""' }
  & sallyport @words ` + completeFlag + ` 2>$null |
    ForEach-Object { [System.Management.Automation.CompletionResult]::new($_) }
}
`,
}

func completionCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:      "completion",
		Usage:     "print a completion script for your shell",
		ArgsUsage: "bash|zsh|fish|powershell",
		Description: "bash: sallyport completion bash > /etc/bash_completion.d/sallyport\n" +
			"zsh:  sallyport completion zsh > \"${fpath[1]}/_sallyport\"\n" +
			"fish: sallyport completion fish > ~/.config/fish/completions/sallyport.fish\n" +
			"powershell: sallyport completion powershell >> $PROFILE",
		OnUsageError: onUsageError,
		Action: func(c *cli.Context) error {
			if c.NArg() != 1 {
				return usageError("for example: sallyport completion bash", "completion takes one shell: bash, zsh, fish or powershell")
			}
			shell := c.Args().First()
			s, ok := completionScripts[shell]
			if !ok {
				return usageError("use bash, zsh, fish or powershell", "no completion for %q", shell)
			}
			fmt.Fprint(io.out, s)
			return nil
		},
	}
}

func manCommand(io stdio) *cli.Command {
	return &cli.Command{
		Name:         "man",
		Usage:        "print the manual page (troff)",
		Description:  "sallyport man | man -l -",
		OnUsageError: onUsageError,
		Action: func(c *cli.Context) error {
			if err := noArgs(c); err != nil {
				return err
			}
			page, err := c.App.ToManWithSection(1)
			if err != nil {
				return err
			}
			fmt.Fprintln(io.out, page)
			return nil
		},
	}
}
