--> SELECT auto_service_0, Sum(request) FROM application GROUP BY auto_service_0
-- refused: application has no auto_service_0: its rows describe the serving end alone (line 1, column 8); application_map has both ends

--> SELECT Sum(reqest) FROM application
-- refused: application has no tag or metric reqest (line 1, column 12); did you mean request?

--> SELECT Sum(request) FROM aplication
-- refused: no table aplication (line 1, column 26); did you mean application?

--> SELECT * FROM application
-- refused: expected columns by name, found * (line 1, column 8); SHOW TAGS FROM table lists them

--> SELECT Sum(request) FROM file('/etc/passwd')
-- refused: file is not a table (line 1, column 26); table functions are not accepted; SHOW TABLES lists the tables

--> SELECT Sum(request) FROM application JOIN network
-- refused: expected the end of the statement, found JOIN (line 1, column 38)

--> SELECT Sum(request) FROM (SELECT 1)
-- refused: expected the name of a table, found ( (line 1, column 26)

--> SELECT Sum(request) FROM application SETTINGS readonly = 0
-- refused: expected the end of the statement, found SETTINGS (line 1, column 38)

--> SELECT Sum(request) FROM application UNION ALL SELECT 1 FROM network
-- refused: expected the end of the statement, found UNION (line 1, column 38)

--> SELECT sleep(3) FROM application
-- refused: no function sleep (line 1, column 8); SHOW METRICS FUNCTIONS lists the functions

--> SELECT request FROM application WHERE rrt > (SELECT 1)
-- refused: a subquery is not accepted (line 1, column 46); accepted are names, literals, arithmetic, comparisons and the functions of SHOW METRICS FUNCTIONS

--> SELECT pod, Sum(request) FROM application
-- refused: pod is selected but not grouped by (line 1, column 8); add it to GROUP BY, or write Any(pod)

--> SELECT request, Sum(request) FROM application
-- refused: metric request stands without a function (line 1, column 8); e.g. Sum(request), Max(request)

--> SELECT Sum(error_ratio) FROM application
-- refused: error_ratio is a quotient and does not add up (line 1, column 8); write Avg(error_ratio)

--> SELECT Sum(pod) FROM application
-- refused: pod is a tag, not a metric (line 1, column 12); SHOW METRICS FROM application lists the metrics

--> SELECT Sum(request) FROM application WHERE ip = 'example.org'
-- refused: not an IP address (line 1, column 49); e.g. '10.0.0.1', '10.0.0.0/8', 'fd00::/8'

--> SELECT Sum(request) FROM application WHERE Sum(request) > 1
-- refused: Sum is not accepted in WHERE (line 1, column 44); aggregates are compared in HAVING

--> SELECT Sum(request) FROM application LIMIT 5000000
-- refused: LIMIT 5000000 OFFSET 0 is too high (line 1, column 44); at most 1000000 rows after 10000000

--> INSERT INTO application VALUES (1)
-- refused: expected SELECT or SHOW, found INSERT (line 1, column 1)

--> SELECT Sum(request) FROM application; SELECT 1
-- refused: expected the end of the statement, found SELECT (line 1, column 39)

--> SELECT 'a
-- refused: Unterminated string literal (line 1, column 8)

--> SELECT Count(row) FROM l7_flow_log WHERE _id LIKE '1-%'
-- refused: not the id of a row (line 1, column 51); _id is compared by = and IN with texts that SELECT _id shows
